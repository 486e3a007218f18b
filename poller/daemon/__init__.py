"""The daemon: schedules each user's polls and watches over the process."""
