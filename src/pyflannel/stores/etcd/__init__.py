"""The store on etcd v3, several endpoints of one cluster."""
