"""What a training run leaves behind: its folder, and one record per epoch.

Imports `errors`, `files`, and for what a run is made with `networks.description`.
"""
