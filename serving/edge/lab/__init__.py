"""Devices and a server as processes of their own, over links that are really slow.

`link`, `relay` and `network` are the links, `processes` what runs over them, `faults` and
`strangers` what goes wrong, `checking` and `report` what became of it. `link` and `relay` load
neither torch nor numpy: the relay is small, and there at once.
"""
