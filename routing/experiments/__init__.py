"""Between an experiment's rows and its statistics: what is settled, reported, watched, and put into the table."""
