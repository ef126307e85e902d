"""Where a run starts from: values by model, subject and memory, and what other trainers' files say."""
