// Pushes one file as Flux's library can but its command cannot: a layer that is no archive.
// install.sh builds this inside a copy of flux2, whose go.mod it uses.
// usage: flux-static REFERENCE FILE [EXTENSION]
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/fluxcd/pkg/oci"
	"github.com/google/go-containerregistry/pkg/crane"
)

func main() {
	options := []oci.PushOption{
		oci.WithPushLayerType(oci.LayerTypeStatic),
		oci.WithPushMetadata(oci.Metadata{
			Source:   "https://git.example.com/demo.git",
			Revision: "main@sha1:0123456789012345678901234567890123456789",
			Created:  "1970-01-01T00:00:00Z",
		}),
	}
	if len(os.Args) > 3 {
		options = append(options, oci.WithPushMediaTypeExt(os.Args[3]))
	}
	client := oci.NewClient(append(oci.DefaultOptions(), crane.Insecure))
	digest, err := client.Push(context.Background(), os.Args[1], os.Args[2], options...)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(digest)
}
