"""The store in etcd v3, with several endpoints of one cluster."""
