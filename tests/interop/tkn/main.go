// Tekton's tkn with its bundle command alone, which needs far fewer modules than all of them.
// install.sh builds this inside a copy of tkn's module, whose go.mod it uses.
package main

import (
	"os"

	"github.com/spf13/cobra"
	"github.com/tektoncd/cli/pkg/cli"
	"github.com/tektoncd/cli/pkg/cmd/bundle"
)

func main() {
	tkn := &cobra.Command{Use: "tkn", SilenceUsage: true}
	tkn.AddCommand(bundle.Command(&cli.TektonParams{}))
	if tkn.Execute() != nil {
		os.Exit(1)
	}
}
