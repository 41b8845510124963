"""From rows to tables, figures and the page."""
