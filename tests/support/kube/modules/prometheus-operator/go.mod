// Pins the definitions of ServiceMonitor and PrometheusRule.
module dinoctl.io/tests/prometheus-operator

go 1.26

require github.com/prometheus-operator/prometheus-operator v0.94.1
