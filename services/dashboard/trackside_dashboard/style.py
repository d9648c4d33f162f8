"""The look that themes cannot give. Constant text: nothing of a job ever goes in here."""

from typing import Final

CSS: Final = """
<style>
.stMainBlockContainer {padding-top: 4.2rem; padding-bottom: 3rem; max-width: 1500px}
.stApp {font-variant-numeric: tabular-nums; font-feature-settings: "tnum"}
.st-key-frame {margin-bottom: -.4rem}
[data-testid="stMetricValue"] {font-variant-numeric: tabular-nums}
[data-testid="stMarkdownContainer"] p {overflow-wrap: anywhere}
[data-testid="stText"] {overflow-wrap: anywhere; white-space: pre-wrap}
.stProgress [data-testid="stMarkdownContainer"] p {font-size: .8rem; opacity: .75}
[data-testid="stHeaderActionElements"] {display: none}
@media (max-width: 640px) {
  .stMainBlockContainer {padding-left: .8rem; padding-right: .8rem}
}
</style>
"""
