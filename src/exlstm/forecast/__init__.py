"""Forecasts of one series: its history is checked, methods are fitted, and compared on the same windows."""
