"""One module a page: only Streamlit's widgets."""
