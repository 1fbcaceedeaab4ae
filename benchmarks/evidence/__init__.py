"""Does one set of features serve tasks that want different invariances? Methods, tasks and figures."""
