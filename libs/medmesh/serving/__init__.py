"""Models in service: what is released is verified, installed, run and answered for; shared by inference and the hospital's node."""
