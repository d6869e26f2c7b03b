"""Keys that wrap and sign for us by label, wherever they lie: in a folder (`file`), or in another process or device (`keeper`)."""
