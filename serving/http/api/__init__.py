"""Requests and answers of the API: what is asked, what the batch writes, how it is told."""
