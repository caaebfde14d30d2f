// The registry of go-containerregistry with the referrers API, which `crane registry serve` leaves out. It is in memory.
// install.sh builds this inside a copy of go-containerregistry's module.
// usage: referrers-registry ADDRESS
package main

import (
	"log"
	"net/http"
	"os"

	"github.com/google/go-containerregistry/pkg/registry"
)

func main() {
	log.Fatal(http.ListenAndServe(os.Args[1], registry.New(registry.WithReferrersSupport(true))))
}
