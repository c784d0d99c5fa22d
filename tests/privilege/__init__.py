"""Who may do what: at the databases, at the broker, in the containers, at the edge."""
