# The same entries as dev.py, for those who have make.
.PHONY: install check test
install check test:
	python3 dev.py $@
