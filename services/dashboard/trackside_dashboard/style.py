"""The look that themes cannot give. Constant text: nothing of a job ever goes in here."""

from typing import Final

GREY: Final = "<style>.st-key-page {filter: grayscale(1); opacity: .55}</style>"
CSS: Final = """
<style>
.stMainBlockContainer {padding-top: 4.2rem; padding-bottom: 3rem; max-width: 1500px}
.stApp {font-variant-numeric: tabular-nums; font-feature-settings: "tnum"}
.st-key-frame {margin-bottom: .2rem}
[data-testid="stMetricValue"] {font-variant-numeric: tabular-nums}
[data-testid="stMarkdownContainer"] p {overflow-wrap: anywhere}
[data-testid="stText"] {overflow-wrap: anywhere; white-space: pre-wrap}
.stProgress [data-testid="stMarkdownContainer"] p {font-size: .8rem; opacity: .75}
[data-testid="stMarkdownContainer"] :is(h1, h3, h5) {padding: 0; margin: 0}
[data-testid="stMarkdownContainer"]:has(> div > :is(h1, h3)),
[data-testid="stMarkdownContainer"]:has(> :is(h1, h3)) {margin-bottom: 0}
[data-testid="stHeaderActionElements"] {display: none}
.st-key-story table {width: 100%; font-size: .9rem}
.st-key-story td:first-child {white-space: nowrap; width: 1%; opacity: .7; vertical-align: top}
@media (max-width: 640px) {
  .stMainBlockContainer {padding-left: .8rem; padding-right: .8rem}
}
</style>
"""
