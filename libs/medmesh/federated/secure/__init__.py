"""Secure aggregation: the platform learns the sum of the hospitals' updates and no single one (Bonawitz et al., CCS 2017).

`session` says what is agreed, `contributor` is a hospital's side, `collector` the platform's; `vectors` are the streams of numbers,
`counts` what evaluations add to them, `shamir` shares secrets. Nothing here does I/O beyond files.
"""
