"""The radio between devices and server: gains, fading, rates, payloads, shares of the band."""
