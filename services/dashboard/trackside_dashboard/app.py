"""The dashboard's frame: navigation, freshness, and the page inside. Run by Streamlit at every visit."""

from pathlib import Path

import streamlit as st
from streamlit.delta_generator_singletons import context_dg_stack, get_default_dg_stack_value

from trackside_dashboard import live, style

# A fragment leaves its own containers open behind it, and a page that is drawn next by the same thread would land
# inside of them and break in the browser (Streamlit 1.67).
context_dg_stack.set(get_default_dg_stack_value())

st.set_page_config(page_title="Trackside", page_icon=str(Path(__file__).with_name("icon.svg")), layout="wide")
pages = [
    st.Page("views/fleet.py", title="Fleet", icon=":material/grid_view:", default=True),
    st.Page("views/jobs.py", title="Jobs", icon=":material/list:", url_path="jobs"),
    st.Page("views/job.py", title="Job", icon=":material/show_chart:", url_path="job", visibility="hidden"),
    st.Page("views/processes.py", title="Processes", icon=":material/memory:", url_path="processes"),
    st.Page("views/events.py", title="Events", icon=":material/history:", url_path="events"),
]
st.logo(str(Path(__file__).with_name("icon.svg")), size="medium")
page = st.navigation(pages, position="top")
st.html(style.CSS)
with st.container(key="frame", horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
    if page.url_path == "job":
        st.page_link("views/jobs.py", label="All jobs", icon=":material/arrow_back:")
    else:
        st.markdown(f"# {page.title}", width="content")
    live.freshness()
live.trouble()
with st.container(key="page"):
    page.run()
