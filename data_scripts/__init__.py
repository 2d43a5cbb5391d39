"One script per real data set: fetch, verify, convert to the course's clip format."
