"""A federation in one process: the real coordinator and the real code of hospitals' nodes, over ports that live in memory.

What decides is the platform's own: the federation service with its handlers, its coordinator and its tables, and of each hospital its
store, its policy, its proofs, its training and what it uploads. In memory are the bus, the databases and the gateway's door; one worker
trains for many hospitals in turn. People, keys and approvals are made up and then verified as always. Nothing of it counts outside.
"""
