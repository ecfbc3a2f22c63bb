"""The console command `cascade`: parse, compose, call."""
