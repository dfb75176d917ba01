"""A coordinator for demos, tests and task developers; never for production.

It speaks the whole of the node API v1, keeps every job in memory and forgets all of it
when it ends, lets anybody who can reach its port submit jobs, and breaks on request
(faults.py). The miner never imports it. Read in this order: records (nouns), state
(rules), node_api and client_api (wire), server (process).
"""
