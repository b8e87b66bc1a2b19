# The same entries as dev.py, for those who have make.
.PHONY: install check test chaos
install check test:
	python3 dev.py $@
chaos:
	python3 dev.py test tests/faults/test_chaos.py
