"""What a training run leaves behind and when: its folder, one record per epoch, checkpoints within an epoch.

Imports `errors`, `files`, `machine`, and for what a run is made with and writes `networks.description` and
`networks.checkpoints`.
"""
