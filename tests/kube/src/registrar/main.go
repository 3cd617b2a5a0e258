// registrar registers a CSI driver with the kubelet, as node-driver-registrar does: it takes the
// flags of it that the chart gives, and serves the registration socket.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	reg "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type server struct {
	reg.UnimplementedRegistrationServer
	name, endpoint string
}

func (s *server) GetInfo(context.Context, *reg.InfoRequest) (*reg.PluginInfo, error) {
	return &reg.PluginInfo{Type: reg.CSIPlugin, Name: s.name, Endpoint: s.endpoint, SupportedVersions: []string{"1.0.0"}}, nil
}

func (s *server) NotifyRegistrationStatus(_ context.Context, status *reg.RegistrationStatus) (*reg.RegistrationStatusResponse, error) {
	if !status.PluginRegistered {
		log.Fatalf("registration failed: %s", status.Error)
	}
	log.Print("registered")
	return &reg.RegistrationStatusResponse{}, nil
}

// driverName asks the driver until it answers.
func driverName(socket string) string {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		info, err := csi.NewIdentityClient(conn).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{})
		cancel()
		if err == nil {
			return info.Name
		}
		log.Printf("waiting for the driver: %v", err)
		time.Sleep(200 * time.Millisecond)
	}
}

func main() {
	csiAddress := flag.String("csi-address", "/csi/csi.sock", "the driver's socket, in this container")
	endpoint := flag.String("kubelet-registration-path", "", "the driver's socket, as the kubelet sees it")
	dir := flag.String("plugin-registration-path", "/registration", "folder of registration sockets")
	flag.Int("v", 0, "accepted, without meaning here")
	flag.Parse()
	name := driverName(*csiAddress)
	socket := filepath.Join(*dir, name+"-reg.sock")
	_ = os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		log.Fatal(err)
	}
	grpcServer := grpc.NewServer()
	reg.RegisterRegistrationServer(grpcServer, &server{name: name, endpoint: *endpoint})
	go func() { log.Fatal(grpcServer.Serve(listener)) }()
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGINT, syscall.SIGTERM)
	<-ended
	_ = os.Remove(socket)
}
