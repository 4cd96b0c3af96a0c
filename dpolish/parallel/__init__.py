"""Many ranks: who they are, how the model is spread over them, and what ends them all when one is lost."""
