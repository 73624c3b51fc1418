"""The store that uses etcd v3, with several endpoints of one cluster."""
