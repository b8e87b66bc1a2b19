"""Live servers, supervised: started under a lifeline, waited for by progress, judged by their log, stopped whole."""
