//! What happens when something fails: the guest runs on exactly one host in the end, or its only image died.
