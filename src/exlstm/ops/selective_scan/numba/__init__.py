"""The selective scan on a CPU."""
