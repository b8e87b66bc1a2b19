"""What running servers say of themselves, and what to change. Sends no load, changes nothing; knows no tuning run."""
