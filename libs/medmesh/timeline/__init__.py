"""What happened to whom and when: one table of events per project, shaped like MEDS, whatever the source.

A source's reader yields `Draft`s with the hospital's own identifiers and times; `identity.Namer` gives them a subject and moves their
times; `records` keeps them, in SQLite at the edge and in PostgreSQL centrally, and answers a subject's events in order.
"""
