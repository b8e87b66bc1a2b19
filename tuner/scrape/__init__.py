"""What servers say of themselves over time: scrapes live, saved or from Prometheus. Knows no model and no advice."""
