package object_test

import (
	"crypto/sha256"
	"testing"

	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// Checksums that ostree 2022.7 printed for these objects (ostree commit and
// ostree checksum), for where no ostree is at hand.
func TestGoldenChecksums(t *testing.T) {
	tree := fstree.New()
	file := func(content string, header []byte) object.Checksum {
		return sha256.Sum256(append(header, content...))
	}
	hello := file("hello\n", object.FileHeader(0, 0, 0o100644, "", nil))
	label := tree.Intern([]fstree.Xattr{{Name: "user.b", Value: "two\x00"}, {Name: "user.a", Value: "one"}})
	for _, c := range []struct {
		name string
		got  object.Checksum
		want string
	}{
		{"empty directory", object.Sum(object.EncodeDirtree(nil, nil)), "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"},
		{"dirmeta 0755 root", object.Sum(object.EncodeDirmeta(0, 0, 0o040755, nil)), "446a0ef11b7cc167f3b603e585c7eeeeb675faa412d5ec73f62988eb0b6c5488"},
		{"regular file", hello, "44f778e59f0a4748d6b0c90a47347212a231c4ad1e8f7ea5c5dffc7749153a6b"},
		{"regular file with xattrs", file("hello\n", object.FileHeader(1, 2, 0o104755, "", label)), "b0c43acbd8fa7b1f128dfe5ddfde16441438c7521a020fde4fe959ff58136b6d"},
		{"symlink", file("", object.FileHeader(0, 0, 0o120777, "../target", nil)), "420b73367f8f4ce4809a96cdbdb0b4b447cc428f819ffb1ab3000e00e75654cd"},
	} {
		if c.got.String() != c.want {
			t.Errorf("%s: checksum %s, ostree says %s", c.name, c.got, c.want)
		}
	}
}
