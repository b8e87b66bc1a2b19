"""One module a page: Streamlit's widgets and nothing else."""
