// Checks a file of Prometheus' rules as Prometheus does when it loads one: names, PromQL, templates of annotations.
package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

func main() {
	rules, err := io.ReadAll(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	promql := parser.NewParser(parser.Options{})
	_, problems := rulefmt.Parse(rules, false, model.UTF8Validation, promql, slog.Default())
	for _, problem := range problems {
		fmt.Fprintln(os.Stderr, problem)
	}
	if len(problems) > 0 {
		os.Exit(1)
	}
}
