"""The provable log: Merkle tree, signed notes, checkpoints, leaves; pure functions, but for the key file."""
