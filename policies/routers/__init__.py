"""Policies that choose an arm for one text: rules, bandits, trained routers."""
