package loader_test

import (
	"testing"

	"github.com/kedge-os/kedge/pkg/boot/loader"
	"github.com/kedge-os/kedge/pkg/boot/loader/loadertest"
)

func TestNone(t *testing.T) {
	loadertest.Run(t, func(*testing.T) (loader.Loader, string) { return loader.None{}, "" })
}
