"""What every service is made of: a declaration (`spec`), settings, a dispatcher for its handlers, and a process."""
