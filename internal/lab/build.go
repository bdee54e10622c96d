package lab

import (
	"context"
	"os"
)

// BuildTags are the tags that kedge is built with everywhere.
const BuildTags = "containers_image_openpgp exclude_graphdriver_btrfs exclude_graphdriver_devicemapper"

// BuildKedge builds the static kedge of this source tree to path, or copies the
// one that KEDGE_BINARY names.
func BuildKedge(ctx context.Context, path string) error {
	if built := os.Getenv("KEDGE_BINARY"); built != "" {
		_, err := Command(ctx, "cp", built, path)
		return err
	}
	// env, since a race-detecting test run has cgo on.
	_, err := Command(ctx, "env", "CGO_ENABLED=0", "go", "build", "-C", SourceDir(),
		"-trimpath", "-tags", BuildTags, "-ldflags", "-s -w", "-o", path, "./cmd/kedge")
	return err
}
