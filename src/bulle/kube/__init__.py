"""The same app on Kubernetes: what a Compose file says, in the documents of a cluster."""
