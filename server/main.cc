// overfill-server, see server_main.h.
#include "server/server_main.h"

int main(int argc, char** argv) { return overfill::RunServer(argc, argv, {}); }
