"""What watches runs from outside: a scrape configuration and alert rules for Prometheus, a dashboard for Grafana."""
