"""Where state is kept: PostgreSQL (SQLite at the edge) behind one unit of work, and objects behind one port."""
