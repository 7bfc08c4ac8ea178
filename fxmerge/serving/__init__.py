"""Serving merged models: the Open Inference Protocol v2 over REST and gRPC, requests batched together."""
