"""Bags of ROS 1 and 2: the container (`bag`, `salvage`) and what is in it (`messages`)."""
