"""What happened, for other systems to follow: `base` is the question; Kafka's protocol answers it."""
